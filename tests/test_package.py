"""What a user gets with `import lrp`."""

import subprocess
import sys

import lrp


def test_import_needs_torch_alone() -> None:
    code = "import sys, torch; before = set(sys.modules); import lrp; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    roots = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    assert roots <= {"lrp", "torch"}, roots


def test_every_public_name_is_documented() -> None:
    for name in lrp.__all__:
        assert (getattr(lrp, name).__doc__ or "").strip(), name
