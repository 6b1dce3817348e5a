"""The exact test for two models on the same pairs."""


def sign_test(fewer: int, tosses: int) -> float:
    """Two-sided p-value of McNemar's exact test: twice the binomial tail of a fair coin, at most 1.

    Args:
        fewer: pairs that changed sides in the rarer direction.
        tosses: all pairs that changed sides.
    """
    # in integers: exact for any count, and a quotient too small for a float comes out as 0
    ways = tail = 1
    for index in range(fewer):
        ways = ways * (tosses - index) // (index + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**tosses)
