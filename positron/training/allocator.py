"""placeholder"""


def tune_allocator() -> bool:
    return False
