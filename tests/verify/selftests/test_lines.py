"""What no case runs has a reason, and reasons that are about nothing are found."""

from __future__ import annotations

from typing import Any

from verify.selftests.lines import Function, Reason, faults, functions, reasons, table


def report(**missing: int) -> dict[str, Any]:
    found = {
        name: {"summary": {"num_statements": 5}, "missing_lines": list(range(count))} for name, count in missing.items()
    }
    return {"files": {"/somewhere/lrp_rules/rules.py": {"functions": {"": found.pop("outside"), **found}}}}


KNOWN = [Reason("errors", "nobody makes them", ("rules.py:refused",))]


def test_functions_are_named_by_file() -> None:
    assert list(functions(report(outside=0, whole=2))) == [
        Function("rules.py:-", 5, 0),
        Function("rules.py:whole", 5, 2),
    ]


def test_a_line_without_a_reason_is_named_and_so_is_a_reason_without_a_line() -> None:
    assert list(faults(list(functions(report(outside=0, refused=2))), KNOWN)) == []
    (fault,) = faults(list(functions(report(outside=1, refused=2))), KNOWN)
    assert fault == "rules.py:-: 1 of 5 lines are run by no case"
    (fault,) = faults(list(functions(report(outside=0, refused=0))), KNOWN)
    assert "'rules.py:refused' is run whole" in fault


def test_the_table_counts_each_line_once() -> None:
    again = [*KNOWN, Reason("again", "the same", ("rules.py:*",))]
    text = table(list(functions(report(outside=1, refused=2))), again)
    assert text.splitlines()[0].startswith("| 7 of 10 lines are run by cases.")
    assert text.splitlines()[2:] == ["| errors | 2 | nobody makes them |", "| again | 1 | the same |"]


def test_every_entry_says_why() -> None:
    assert all(reason.what and reason.why and reason.where for reason in reasons())
