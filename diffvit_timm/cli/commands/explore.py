"""Open a local web page that shows what one or two networks attend to on your images.

    diffvit explore RUN
    diffvit explore RUN deit_tiny_patch16_224.fb_in1k                      # two networks, side by side
    diffvit explore diffvit_tiny_patch16.deit_in1k --img-size 384 --port 8000
    diffvit explore hf-hub:USER/MODEL --space USER/NAME                    # publish the page as a Space of the Hub

Open the address that it prints in a browser, and choose an image. A click on a patch shows A1, A2 and A1 - lambda A2 of
any layer and head for this patch, and its rollout. The page also shows the predictions, the relevance for the predicted
class, and lambda and negative mass of each layer. Nothing leaves this machine; Ctrl-C ends the page and deletes its
copies of the images. It needs the extra [app]: pip install 'diffvit_timm[app]'.
"""

import dataclasses
from typing import Annotated

import tyro

from ...app.serving import require_address, require_gradio, serve
from ...errors import require_device
from ...options import CheckedOptions

LARGEST_PORT = 65_535


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL]")]
    """timm model name with its pretrained tag, hf-hub:NAME, a folder of weights, or a run folder; one or two."""
    img_size: tuple[int, ...] = ()
    """Image size in pixels: one number, or height and width; default: the size of each model. More pixels give finer
    maps, and the position embeddings are interpolated."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is only reachable from this machine; 0.0.0.0 is reachable from the network."""
    port: int = 7860
    """Port to listen on."""
    space: str | None = None
    """Space, NAME or USER/NAME, to push the page to, for models on the Hub; nothing is opened here."""
    private: bool = False
    """If the Space is new, make it private."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("models", 1 <= len(self.models) <= 2, "must be one or two models")
        self.require_image_size("img_size")
        if self.space is not None:
            for name in ("img_size", "device", "host", "port"):
                self.require_default(name, "is for a page on this machine, and not for a Space")
        else:
            self.require_default("private", "is for a Space, and `space` is not given")
        self.require("port", 1 <= self.port <= LARGEST_PORT, f"must be from 1 to {LARGEST_PORT}")


def main(options: Options) -> None:
    require_gradio()
    if options.space is not None:
        from ...hub.spaces import push_space  # not above: --help does not wait for it

        print(push_space(options.models, options.space, options.private))
        return
    require_address(options.host, options.port)
    require_device(options.device)
    serve(options.models, host=options.host, port=options.port, device=options.device, img_size=options.img_size)
