"""Which kind of processor a machine has: ratios hold for a kind, and each has its own record.

Clouds tell only "AMD EPYC", but the system tells family and model. Source: the Linux kernel's
`arch/x86/include/asm/intel-family.h` and `arch/x86/kernel/cpu/amd.c`.
"""

import re
from pathlib import Path

from minflux.backend import get_backend
from minflux.backend.machine import field
from minflux.commands.doctor import processor

ZEN4 = (*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0))  # models of AMD's family 0x19; others are Zen 3
INTEL = {
    0x55: "skylake-x", 0x6A: "ice-lake", 0x6C: "ice-lake", 0x8F: "sapphire-rapids", 0xCF: "emerald-rapids",
    0xAD: "granite-rapids", 0x97: "alder-lake", 0x9A: "alder-lake", 0xB7: "raptor-lake", 0xAA: "meteor-lake",
}  # fmt: skip


def kind_of(device: str) -> str:
    """Return the kind of this machine's "cpu" or "gpu", which names its record: "amd-zen5", "apple-m2"."""
    return processor_kind() if device == "cpu" else gpu_kind()


def processor_kind(cpuinfo: str | Path = "/proc/cpuinfo") -> str:
    """Return the processor's microarchitecture where it is known here, or else its name."""
    vendor, family, model = (field(cpuinfo, name) for name in ("vendor_id", "cpu family", "model"))
    known = None
    if vendor == "AuthenticAMD" and family and model:
        known = zen(int(family), int(model))
    if vendor == "GenuineIntel" and family == "6" and model:
        known = INTEL.get(int(model))
    maker = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}.get(vendor or "", "")
    return f"{maker}-{known}" if known else slug(processor())


def zen(family: int, model: int) -> str | None:
    """Return which Zen an AMD processor is, None for one that isn't known here.

    >>> zen(0x19, 0x01), zen(0x19, 0x11), zen(0x1A, 0x02), zen(0x15, 0x02)
    ('zen3', 'zen4', 'zen5', None)
    """
    if family == 0x19:
        return "zen4" if model in ZEN4 else "zen3"
    return {0x1A: "zen5"}.get(family)


def gpu_kind() -> str:
    """Return the name of the GPU that MLX computes on."""
    return slug(str(get_backend("mlx").xp.device_info()["device_name"]))


def slug(name: str) -> str:
    """Return a name as a file's.

    >>> slug("Apple M2 Pro"), slug("Intel(R) Xeon(R) CPU @ 2.20GHz")
    ('apple-m2-pro', 'intel-r-xeon-r-cpu-2-20ghz')
    """
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
