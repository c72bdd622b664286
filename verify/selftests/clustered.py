"""The self-test on a cluster: what `verify.selftests.matrix.Judges` is on one machine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

from verify.runs.cluster.client import Cluster
from verify.selftests.matrix import Judges, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from verify.runs.worker import Source

#: The most mutants in a chunk: a few seconds.
_MOST = 4


class ClusterJudges(Judges):
    """Judges whose processes run where a cluster's workers are."""

    def __init__(
        self,
        address: str,
        _workers: int,
        source: Source,
        ids: frozenset[str] | None,
        first: Mapping[str, str] | None,
    ) -> None:
        self._cluster = Cluster(address, "lrp_rules", partial(_judges, source, ids, first))

    def __enter__(self) -> Self:
        self._cluster.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.__exit__()

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Row, list[str]]]:
        """Yield the rows of mutants as they come; see Judges."""
        return self._cluster.ask(
            Judges.rows, names, lambda name: (Row(name, {}, {}, "it ends every worker of the cluster"), []), most=_MOST
        )


def _judges(source: Source, ids: frozenset[str] | None, first: Mapping[str, str] | None, _beside: int) -> Judges:
    return Judges(1, source, ids, first)
