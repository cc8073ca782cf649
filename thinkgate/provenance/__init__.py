"""Who vouches for a checkpoint: keys, signatures, attestations, and verifying them.

`attest(folder, key)` seals what the gate said, `sign(folder, key)` a PASS and every file;
`verify(folder, keys)` says line by line what matches.
"""

from thinkgate.provenance.signing import attest, sign, unsign
from thinkgate.provenance.verification import SIGNATURE, Check, Outcome, Report, verify

__all__ = ["SIGNATURE", "Check", "Outcome", "Report", "attest", "sign", "unsign", "verify"]
