"""The second set of mutants, made from the source of ``lrp_rules`` by changing one thing at a time.

The mutants of :mod:`verify.selftests.mutants` are mistakes that somebody thought of; these are the ones that nobody
did. Each is killed by a case of the grid, or by a test of ``tests/lrp_rules`` where it is a matter of hooks and
refusals, or stands in ``equivalents.toml`` with the reason why it changes nothing that there is to see::

    python -m verify.selftests.mechanical               # all, 2 workers
    python -m verify.selftests.mechanical --every 16    # a fixed part of them
    python -m verify.selftests.mechanical --refresh     # after a change of lrp_rules: drops stale entries, adds others

mutmut and cosmic-ray start a test command for each mutant, and importing torch alone takes seconds; the grid is no test
command, and one process that has imported all but ``lrp_rules`` can be forked thousands of times. So the tool is our
own: operators and ids (``operators``, ``mutator``), one mutant in one process (``trial``), all of them (``running``).
"""
