"""A web API with Django that calls a service: novasvc serves both, and a view waits for the service."""

import json
from typing import Any

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, JsonResponse
from django.urls import path

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


def call(request: HttpRequest, method: str, **arguments: Any) -> Any:
    """Call the service for a request. Django runs it in a thread, where a call may wait."""
    client: blocking.Client = request.META["novasvc.rpc"]
    return client.prepare(topic="stock", timeout=5).call(RequestContext(), method, **arguments)


def goods(request: HttpRequest) -> JsonResponse:
    """List the goods."""
    return JsonResponse(call(request, "goods"))


def order(request: HttpRequest) -> JsonResponse:
    """Order some of an item."""
    given = json.loads(request.body)
    return JsonResponse({"left": call(request, "reserve", **given)}, status=201)


class ErrorMiddleware:
    """Answers with the errors of calls: those that the method raised, and those of novasvc."""

    def __init__(self, get_response: Any) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        """Handle a request."""
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> JsonResponse | None:
        """Return a response for an exception of a view, or None for Django's own."""
        if isinstance(error, InvalidArgumentsError | TypeError | ValueError):
            status = 400
        elif isinstance(error, LookupError):
            status = 409
        elif isinstance(error, NovasvcError):
            status = 503
        else:
            return None
        return JsonResponse({"error": str(error)}, status=status)


urlpatterns = [path("goods", goods), path("orders", order)]


def make_app(_global_config: dict[str, str], secret_key: str) -> WSGIHandler:
    """Make the application; api-paste.ini names this function. A project calls get_wsgi_application() here."""
    settings.configure(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        SECRET_KEY=secret_key,
        MIDDLEWARE=[f"{__name__}.ErrorMiddleware"],
    )
    django.setup()
    return WSGIHandler()
