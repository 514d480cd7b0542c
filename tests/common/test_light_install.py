"""With torch and numpy alone everything but files, figures and large tables works."""

import subprocess
import sys
import textwrap

BLOCKED = ("datasets", "pyarrow", "tqdm", "matplotlib", "safetensors", "triton", "ray", "pandas")


def test_a_plain_install_trains_and_names_the_extra_of_what_it_lacks() -> None:
    """A user who has not asked for Parquet or figures is told by which name to ask."""
    script = """
        import sys
        for name in sys.argv[1:]:
            sys.modules[name] = None
        import torch, warmstart
        from torch import nn
        from torch_specgd import Muon, SpectrumTracker
        from torch_specgd.triton_kernels.workshop import aot

        model = nn.Linear(4, 3)
        tracker = SpectrumTracker(model)
        model(torch.randn(5, 4)).sum().backward()
        Muon(model, lr=0.01).step()
        tracker.record(1)
        report = warmstart.dash_shrink(model, [(torch.randn(6, 4), torch.arange(6) % 3)])
        said = []
        for call in (
            tracker.table,
            lambda: tracker.to_csv("x.csv"),
            lambda: tracker.to_parquet("x.parquet"),
            tracker.plot,
            report.plot,
            lambda: aot.compile_variant(next(iter(aot.variants()))),
        ):
            try:
                call()
            except ImportError as error:
                said.append(str(error).split("torch-specgd")[-1])
        print(said)
    """
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *BLOCKED]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    data, plot = '[data]"', '[plot]"'
    assert done.stdout.strip() == str([data, data, data, plot, plot, '[triton]"'])
