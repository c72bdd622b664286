"""Frozen vectors: questions with their answers as files, for implementations of the rules in any language.

`questions` says what is asked, `numbers` draws the data, `exact` and `answers` find what is expected and how far
rounding may be from it, `corpus` and `writing` make files of it, `checking` reads them again with distrust, and
`results` judges what a port answered. Only `asking`, which puts the questions to a subject in Python, imports torch.
"""

#: The version of the corpus in `vectors/`, a SemVer of its own: see `vectors/CHANGELOG.md` and `released`.
CORPUS_VERSION = "2.0.0"
#: The version of the form of its files.
SCHEMA_VERSION = 1
