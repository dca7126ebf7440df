"""What the contract of a method adds to a call: microseconds of processor time.

"plain" has arguments of JSON's own types, "order" a dataclass with two others in it and a time. Without a contract each
figure would be 0.
"""

import time
from dataclasses import dataclass
from datetime import datetime
from timeit import Timer
from typing import Any

from msgspec import convert

from novasvc.rpc.contracts.contract import Contract, contract_of

_CALLS, _ROUNDS = 20_000, 15


@dataclass
class Line:
    item: str
    amount: int = 1


@dataclass
class Order:
    number: int
    lines: list[Line]
    due: datetime | None = None


def plain(self: Any, context: Any, item: str, amount: int = 1) -> str: ...  # type: ignore[empty-body]


def order(self: Any, context: Any, order: Order) -> Order: ...  # type: ignore[empty-body]


PLAIN: dict[str, Any] = {"item": "tea", "amount": 2}
ORDER: dict[str, Any] = {
    "order": {
        "number": 1,
        "lines": [{"item": "tea", "amount": 2}, {"item": "cup"}],
        "due": "2026-11-29T12:00:00.000000",
    }
}


def measure() -> dict[str, float]:
    """Measure.

    :return: "contracts.": "plain_arguments", "plain_result", "order_arguments", "order_fields" (the part of them that
        finds unknown fields and times), "order_result".
    """
    small, large = (contract_of(function, "m", "benchmark.m") for function in (plain, order))
    assert small is not None
    assert large is not None
    assert large.shape is not None
    result, text = _converted(large, ORDER)["order"], "tea"
    return {
        "contracts.plain_arguments": _cost(lambda: _converted(small, PLAIN)),
        "contracts.plain_result": _cost(lambda: type(text) is not small.plain_result),
        "contracts.order_arguments": _cost(lambda: _converted(large, ORDER)),
        "contracts.order_fields": _cost(lambda: large.shape.fit(ORDER)),
        "contracts.order_result": _cost(lambda: large.convert_result(result)),
    }


def _converted(contract: Contract, args: dict[str, Any]) -> Any:
    fitting = args if contract.shape is None else contract.shape.fit(args)
    return convert(fitting, contract.arguments, str_keys=True)


def _cost(work: Any) -> float:
    """Return the microseconds of the fastest round."""
    return min(Timer(work, timer=time.process_time).repeat(_ROUNDS, _CALLS)) / _CALLS * 1e6
