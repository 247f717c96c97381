"""How a saved model may be named; apart from ``hlnet.store.locate``, since commands ask before they import it."""

from pathlib import Path

#: A repository on the Hub, and a folder here; as timm writes them.
HUB, FOLDER = "hf-hub:", "local-dir:"
#: The weights in a model folder, and the best ones in a run's.
MODEL_FILE, BEST_FILE = "model.safetensors", "best.safetensors"
#: In a run's folder, the best network as a finished product, with a model card.
MODEL_FOLDER = "model"
#: What a model folder holds.
MODEL_FILES = (MODEL_FILE, "config.json", "README.md")


def is_model_name(name: str) -> bool:
    """Whether this can only name a saved model; a folder may do so too, but may be something else.

    >>> is_model_name("hf-hub:owner/pets"), is_model_name("pets.safetensors"), is_model_name("n3hl_resnet50")
    (True, True, False)
    """
    return name.startswith((HUB, FOLDER)) or name.endswith(".safetensors")


def is_model_folder(name: str) -> bool:
    """Whether this is a folder that holds a network: a model folder, or the run folder of a training."""
    return any((Path(name) / file).is_file() for file in (MODEL_FILE, BEST_FILE))
