"""The practice vendors: stand-ins for Cerebras, Groq, Mistral and LongCat on one loopback port.

They are for a first run without keys, for the tests, and for exercises with failing vendors. Paths, model lists,
refusals, headers and streams are like those of the vendors. They accept only the keys on a list, which can change
while they run; they log each request, and fail on demand.
"""

from isabella.practice.server import PracticeVendors
from isabella.practice.vendor import Request, VendorFault
from isabella.practice.wire import NAMES

__all__ = ["NAMES", "PracticeVendors", "Request", "VendorFault"]
