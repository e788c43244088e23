"""The core of the package needs no extra: it converts, calibrates, captures, predicts and saves without one."""

import subprocess
import sys

# What the extras install and the core must do without. The blocked modules behave as if they were not installed.
EXTRAS = (
    "accelerate", "albumentations", "cv2", "datasets", "gradio", "matplotlib", "open_clip", "onnx", "pandas", "psutil",
    "pyarrow", "rich", "scipy", "sklearn", "tyro"
)  # fmt: skip

BLOCKED = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None
"""

CORE = """
import sys, tempfile
from pathlib import Path
import timm, torch, diffvit_timm
from PIL import Image

torch.manual_seed(0)
shape = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=3)
plain = timm.create_model("vit_tiny_patch16_224", **shape).eval()
images = torch.randn(8, 3, 32, 32)
for settings in ({}, {"attn": "diff_v2"}, {"images": images}):
    model = diffvit_timm.from_vit(plain, **settings).eval()
    report = diffvit_timm.conversion_report(plain, model, images)
    assert 0 <= report.agreement <= 1
    with diffvit_timm.capture_attention(model) as captured, torch.no_grad():
        logits = model(images)
    assert captured[-1].maps().difference.shape == (8, 2, 5, 5)
    with tempfile.TemporaryDirectory() as folder:
        from diffvit_timm.models.pretrained import load_model, save_pretrained
        save_pretrained(model, folder, ["cat", "dog", "owl"])
        loaded = load_model(folder).eval()
        with torch.no_grad():
            assert torch.equal(loaded(images), logits)

from diffvit_timm.data.images import decode_image
from diffvit_timm.data.loading import model_data_config
from timm.data import create_transform
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "photo.png"
    Image.new("RGB", (40, 50), "red").save(path)
    image = decode_image({"bytes": None, "path": str(path)}, "RGB", "photo")
    tensor = create_transform(**model_data_config(loaded), is_training=False)(image)
    assert loaded(tensor[None]).shape == (1, 3)

diffvit_timm.distill_layers(plain, diffvit_timm.from_vit(plain, branch_dims=(8, 8)), images, passes=1)
from diffvit_timm.hub.publishing import push_run
from diffvit_timm.inspection.rollout import heat_maps
assert heat_maps(model, images).relevance.shape == (8, 2, 2)
print("done")
"""


def run(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", BLOCKED + code], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_core_works_without_any_extra():
    code, printed, errors = run(CORE)
    assert code == 0, errors
    assert printed.endswith("done\n")


def test_the_console_command_without_its_extra_is_one_line_that_names_it():
    code, printed, errors = run("from diffvit_timm.cli import main\nmain(['predict', 'cat.jpg', '--model', 'x'])")
    assert (code, printed) == (2, "")
    assert errors == "error: diffvit predict needs tyro: pip install 'diffvit_timm[train]'\n"


def test_a_missing_package_of_a_command_is_one_line_that_names_its_extra():
    blocked = BLOCKED.replace(", 'tyro'", "").replace(", 'rich'", "")
    code = "from diffvit_timm.cli import main\nmain(['train', '--demo'])"
    done = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: diffvit train needs ")
    assert "pip install 'diffvit_timm[train]'" in done.stderr
    assert "Traceback" not in done.stderr
