"""A run on many machines, by Dask: `lrp-verify --cluster`. Nothing else imports what is in here, nor Dask.

A run is cut into chunks of cases, and a chunk is a task of Dask. The worker of Dask that takes it never loads the
subject: it hands the cases to a worker process as `verify.runs.runner` starts them on one machine, so that a crash or
a hang remains the verdict on one case. What each file does: `client` connects, deals out and collects; `station` is
what happens in a worker of Dask; `alike` compares environments; `clustered` is the Runner whose workers are there.
"""
