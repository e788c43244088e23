"""The notebooks run from top to bottom: the quickstart on the data that the package brings, the others on a subset."""

import tempfile
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
traitlets_config = pytest.importorskip("traitlets.config")

FOLDER = Path(__file__).parents[2] / "recipes" / "notebooks"
SHARED = Path(__file__).parents[3] / "shared" / "datasets"


def run(notebook, folder):
    """Run a notebook in a folder; returns what it printed."""
    with tempfile.TemporaryDirectory() as sockets:  # with TCP, kernels that start together may take each other's ports
        manager = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        client = nbclient.NotebookClient(
            notebook,
            timeout=300,
            startup_timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            config=traitlets_config.Config(KernelManager=manager),
        )
        client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {"quickstart", "mnist", "cifar10"}


def test_the_quickstart_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(FOLDER / "quickstart.ipynb", as_version=4)
    # Fewer epochs, because the test does not depend on the accuracy; the warm-up takes 5 and 2 of them.
    for epochs, fewer in (("epochs=40,", "epochs=6,"), ("epochs=12,", "epochs=3,")):
        (cell,) = [cell for cell in notebook.cells if epochs in cell.source]
        cell.source = cell.source.replace(epochs, fewer)
    printed = run(notebook, tmp_path)
    assert "version 2:" in printed
    assert "same outputs after loading: True" in printed
    assert pictures(notebook) == 1
    assert list(tmp_path.iterdir()) == []  # nothing is written beside the notebook


@pytest.fixture
def subset(image_folder, tmp_path):
    """Function: name of a dataset -> a folder with a few of its images, or with those of the other tests."""

    def make(name):
        if not (SHARED / name).is_dir():
            return image_folder
        from datasets import load_dataset

        for split, count in (("train", 120), ("test", 30)):
            rows = load_dataset(str(SHARED / name), split=split).shuffle(seed=0).take(count)
            (tmp_path / name).mkdir(exist_ok=True)
            rows.to_parquet(tmp_path / name / f"{split}.parquet")
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_notebook_of_a_dataset_runs_on_a_subset(name, subset, tmp_path):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    given: dict = {}
    exec(cell.source, given)
    assert (given["dataset"], given["output"]) == (name, f"runs/{name}")
    options = ("max_steps=2", "batch_size=8", "compile=false", "precision=no", "mixup=0", "cutmix=0")
    cell.source = f"dataset = {str(subset(name))!r}\noptions = {options!r}\noutput = {str(tmp_path / 'runs')!r}"
    printed = run(notebook, tmp_path)
    for arm in ("balanced", "diff", "diff_v2", "plain"):
        assert f"{name}/{arm} " in printed
    assert "diff_v2  lambda per layer: [" in printed
    assert pictures(notebook) == 3
