"""stub"""

REQUESTED = None


def break_on_request(): ...
