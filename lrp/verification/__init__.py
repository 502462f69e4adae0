"""Whether lrp is right on a model of yours.

* :mod:`~lrp.verification.verify` - the call
* :mod:`~lrp.verification.checks` - what can be checked
* :mod:`~lrp.verification.reference` - maps that share nothing with the engine
"""

from .verify import Verification, verify

__all__ = ["Verification", "verify"]
