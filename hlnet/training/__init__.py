"""Making a network: settings, losses, the loop, the run folder.

settings           how settings are declared, once, for the command line, recipes and documents
train_config       settings of a training
run_config         settings of a whole run as TOML; ``recipes/`` are those that come with hlnet
run_parts          the network and the data of a run
losses             the losses of a training
optimizers         optimizer, schedule and batch size, by timm's names
cached             features of a frozen trunk, computed once for a training
loop               the training loop, on accelerate
trainer            one epoch: steps, validation, and the state to resume from
run_folder         the files of a run
state              what a run resumes from
stopping           Ctrl-C, kills, shortage of memory or disk
"""
