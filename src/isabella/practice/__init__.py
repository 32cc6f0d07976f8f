"""The practice vendors: stand-ins for Cerebras, Groq, Mistral and LongCat on one loopback port.

For a first run without keys, for the tests, and for rehearsing what vendors do on bad days. They are true to the
vendors in paths, model lists, refusals, headers and streams; they accept only keys on a list that can be changed
while they run; they log what arrives; and they fail on demand.
"""

from isabella.practice.faults import VendorFault
from isabella.practice.profiles import NAMES
from isabella.practice.requests import Request
from isabella.practice.server import PracticeVendors

__all__ = ["NAMES", "PracticeVendors", "Request", "VendorFault"]
