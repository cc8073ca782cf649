"""Who vouches for a checkpoint: keys, signatures, attestations, and verifying them.

`sign(folder, key)` attests and signs; `verify(folder, keys)` says line by line what matches.
"""

from thinkgate.provenance.signing import sign, unsign
from thinkgate.provenance.verification import SIGNATURE, Check, Outcome, Report, verify

__all__ = ["SIGNATURE", "Check", "Outcome", "Report", "sign", "unsign", "verify"]
