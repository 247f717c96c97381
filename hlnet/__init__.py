"""Image classifiers that follow a class tree, and smaller ones cut from them.

The public names:

- Networks: ``create_model``, ``HierarchicalNet``, ``PlainNet``, ``NetworkConfig``, ``load_checkpoint``,
  ``save_checkpoint``, ``push_to_hub``, ``optimize``, ``profile``, ``export_model``, ``open_exported``
- Class trees: ``ClassTree``, ``read_tree``, ``write_tree``, ``select_classes``
- Images: ``load_data``, ``TreeData``, ``loader``, ``train_transform``, ``eval_transform``
- Training: ``train``, ``TrainConfig``
- Answers: ``predict``, ``evaluate``, ``calibrate``
- Cues: ``Cue``, ``CuePolicy``, ``attend``
- Experts: ``cut_expert``, ``cut_checkpoint``, ``verify_expert``, ``merge_experts``, ``graft``
- Errors: ``HlnetError``, ``UsageError``

All else is reached by its module, as in ``from hlnet.cues.files import read_cues``.
"""

import lazy_loader
from wrapt import when_imported

from hlnet.model.presets import register_with_timm
from hlnet.version import __version__ as __version__

# Names and their modules are in __init__.pyi. Each is imported when first used: the command line does not wait for
# torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

when_imported("timm")(register_with_timm)
