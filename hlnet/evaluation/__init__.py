"""Answers, and how good they are.

logits             logits of all images of a data set
evaluate           accuracy of networks, one beside another
calibration        temperature, and thresholds for "none of these" and for coverage
groups             one answer for several images
prediction         labels for image files
cue_trial          accuracy with cues
cue_sweep          ... at every strength
cue_report         ... and which mechanism serves best: ``hlnet attend``
cue_picture        ... drawn
metrics/           the measures themselves
"""
