// Whatever a page has to be made live.
