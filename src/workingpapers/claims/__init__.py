"""Claims: what papers claim, measured again and judged by a rule that was fixed before."""

from workingpapers.claims.run import Verdict, check_claims, chosen_claims

__all__ = ["Verdict", "check_claims", "chosen_claims"]
