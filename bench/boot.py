"""From power to data: how long until user space, the first sample, and the first sample in the cloud."""

from __future__ import annotations

import time

from bench.entry import Figure, Number
from bench.gateway import booting_site, first_sample

ABOUT = "A gateway is powered on in QEMU (software emulation unless KVM works); times count from power-on."
FIGURES = {
    "user_space_s": Figure("kernel hands over to systemd", "s"),
    "agent_s": Figure("the guest agent answers", "s"),
    "first_sample_s": Figure("a PLC value is read and time-stamped", "s"),
    "first_sample_in_cloud_s": Figure(
        "a sample is stored in the cloud, after one sync interval", "s", at_most=120
    ),
    "kernel_mb": Figure("kernel image", "MB"),
    "rootfs_mb": Figure("root file system, compressed", "MB", at_most=64),
}


def run(*, quick: bool) -> dict[str, Number]:
    with booting_site() as site:
        powered = time.time() - (time.monotonic() - site.machine.powered_at)
        site.machine.wait_booted()
        agent_s = time.time() - powered
        sampled, _ = first_sample(site)
        stored_s = time.time() - powered
        shown = site.machine.agent.shell("systemctl show -p UserspaceTimestampMonotonic --value")
        image = site.machine.image
        return {
            "user_space_s": round(int(shown) / 1e6, 1),
            "agent_s": round(agent_s, 1),
            "first_sample_s": round(sampled - powered, 1),
            "first_sample_in_cloud_s": round(stored_s, 1),
            "kernel_mb": round(image.kernel.stat().st_size / 1e6, 1),
            "rootfs_mb": round(image.root.stat().st_size / 1e6, 1),
        }
