"""The layers in which a fault can lie."""

from __future__ import annotations

from enum import StrEnum


class Layer(StrEnum):
    """The layer that a finding belongs to, in the order in which a key travels."""

    CONFIGURATION = "configuration"
    VENDOR = "vendor"
    STORED = "stored"
    USE = "use"
    GATEWAY = "gateway"
    RECEIPT = "receipt"
    EXPOSURE = "exposure"

    @property
    def heading(self) -> str:
        """The name of the layer in reports."""
        return {Layer.STORED: "Letta", Layer.USE: "Agents"}.get(self, self.value.capitalize())
