"""Errors that both sides have: oslo.messaging's peer imports them, and the tests register them."""


class OutOfStock(Exception):  # noqa: N818 - a user's
    """As oslo.messaging needs its errors: the args are those of the constructor."""

    def __init__(self, item: str, left: int = 0) -> None:
        super().__init__(item, left)
        self.item, self.left = item, left


class SoldOut(Exception):  # noqa: N818 - as above
    """As most errors are written: the args are a sentence."""

    def __init__(self, item: str, *, since: int = 0) -> None:
        super().__init__(f"{item} is sold out since {since}")
        self.item, self.since = item, since
