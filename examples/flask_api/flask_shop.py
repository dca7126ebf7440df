"""A web API with Flask that calls a service: novasvc serves both, and a request of the API waits for the service."""

from typing import Any, Protocol

from flask import Flask, Response, jsonify, request

from novasvc import Manager, RequestContext, blocking, rpc
from novasvc.errors import InvalidArgumentsError, NovasvcError


class Stock(Manager):
    """Keeps the goods."""

    def __init__(self, host: str, goods: dict[str, int]) -> None:
        super().__init__(host)
        self._goods = dict(goods)

    @rpc.expose(expected=(LookupError,))
    def reserve(self, context: RequestContext, item: str, amount: int = 1) -> int:
        """Take goods out of the stock.

        :return: how many are left.
        :raises LookupError: there are not enough of them.
        """
        if self._goods.get(item, 0) < amount:
            raise LookupError(f"{amount} of {item!r} wanted, {self._goods.get(item, 0)} left")
        self._goods[item] -= amount
        return self._goods[item]

    @rpc.expose
    def goods(self, context: RequestContext) -> dict[str, int]:
        """Return how many there are of each item."""
        return self._goods


class StockAPI(Protocol):
    """The service, as its callers in threads see it; `novasvc stub stock --blocking` writes such a class."""

    def reserve(self, context: RequestContext, item: str, amount: int = 1) -> int:
        """Take goods out of the stock."""

    def goods(self, context: RequestContext) -> dict[str, int]:
        """Return how many there are of each item."""


def stock() -> StockAPI:
    """Return a client of the service for this request. Flask runs it in a thread, where a call may wait."""
    client: blocking.Client = request.environ["novasvc.rpc"]
    return blocking.stub(StockAPI, client.prepare(topic="stock", timeout=5))


def make_app(_global_config: dict[str, str]) -> Flask:
    """Make the application; api-paste.ini names this function."""
    app = Flask(__name__)

    @app.get("/goods")
    def goods() -> Response:
        return jsonify(stock().goods(RequestContext()))

    @app.post("/orders")
    def order() -> tuple[Response, int]:
        given: Any = request.get_json()
        left = stock().reserve(RequestContext(), **given)
        return jsonify(left=left), 201

    # The errors are those that the method raised, and those of novasvc.
    @app.errorhandler(InvalidArgumentsError)
    @app.errorhandler(TypeError)
    def invalid(error: Exception) -> tuple[Response, int]:
        return jsonify(error=str(error)), 400

    @app.errorhandler(LookupError)
    def sold_out(error: LookupError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 409

    @app.errorhandler(NovasvcError)
    def unavailable(error: NovasvcError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 503

    return app
