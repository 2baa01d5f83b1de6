"""What a process runs on, and how busy it is."""

import pytest

from infra.machine import Sampler, environment, gpu_metrics


def test_the_environment_names_hardware_and_versions():
    found = environment()
    assert "core" in found["hardware"]
    assert found["memory_gb"] > 0
    assert found["packages"]["torch"].startswith("2.")


def test_load_and_memory_are_shares_of_the_machine():
    sample = Sampler()
    sum(range(10**6))
    metrics = sample()
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
    assert metrics["system/system_memory_usage_megabytes"] > 1


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            "87, 40000, 81559, 512.5\n3, 10, 81559, 70\n",
            {"gpu_0_utilization_percentage": 87, "gpu_1_power_usage_watts": 70, "gpu_0_power_usage_watts": 512.5},
        ),
        ("[N/A], 100, 1000, [N/A]", {"gpu_0_memory_usage_percentage": 10, "gpu_0_memory_usage_megabytes": 104.8576}),
        ("", {}),
    ],
)
def test_gpus_are_read_from_the_table(table, expected):
    found = gpu_metrics(table)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert not any(name.startswith("gpu_0_util") for name in found) or "[N/A]" not in table
