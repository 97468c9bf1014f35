"""Profile mode: kernels whose requests, sectors and wavefronts can be told by hand."""

import pytest
from helpers.known_costs import KNOWN, Cost, Known, known_folder, launch_known

from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.profile import EVERY_BLOCK


@pytest.fixture(scope="module")
def device(tmp_path_factory) -> Emulator:
    return Emulator(known_folder(tmp_path_factory.mktemp("kernels")), mode="profile", sample=EVERY_BLOCK)


def costs_of(device: Emulator, known: Known) -> dict[str, Cost]:
    device.profiles.clear()
    launch_known(device, known)
    (profile,) = device.profiles
    assert profile.blocks == profile.block_count
    found: dict[str, Cost] = {}
    for line in profile.requests:
        name = f"{line.kind} {line.array.rpartition(')')[2]}"
        before = found.get(name, Cost(0, 0, 0, 0))
        found[name] = Cost(
            *(getattr(line, count) + getattr(before, count) for count in ("requests", "lanes", "parts", "fewest"))
        )
    return found


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: f"{known.kernel} {known.what}".strip().replace(" ", "-"))
def test_the_cost_is_what_a_hand_tells(device: Emulator, known: Known) -> None:
    found = costs_of(device, known)
    for access, cost in known.costs.items():
        expected = {name: value for name, value in vars(cost).items() if value is not None}
        assert {name: vars(found[access])[name] for name in expected} == expected, access
