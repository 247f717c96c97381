"""Options, output and tables of the commands.

options            arguments and options that several commands take
cue_options        options of cues
setting_options    options of ``train``, made from the settings of a run
output             results to stdout, as tables or JSON; progress and hints to stderr
eval_tables        tables of ``eval``
cue_tables         tables of ``attend``
expert_tables      tables of ``make-expert``
calibration_tables reports of ``calibrate`` and ``make-expert --calibrate``
export_tables      tables of ``export``
graft_tables       tables of ``graft``
profile_tables     tables of ``profile``
prediction_formats CSV, JSON lines and text of ``predict``
tree_sources       classes and hierarchies of ``build-tree``
processes          one command as several processes
"""
