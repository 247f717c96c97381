"""Making a network: settings, losses, the loop, the run folder.

train_config       settings of a training run
run_config         a whole run as TOML; ``recipes/`` are those that come with hlnet
losses             what is minimised
optimizers         optimizer, schedule and batch size, by timm's names
loop               the training loop, on accelerate
run_folder         the files of a run
state              what a run resumes from
stopping           Ctrl-C, kills, shortage of memory or disk
"""
