"""Measures of answers; nothing here knows a network.

accuracy           top-1, top-5, by class
hierarchy          mistakes measured by the tree
comparison         whether two networks differ by more than chance
confusion          the confusion matrix, as a picture or a table
probability        class probabilities, temperature, calibration error
rejection          "none of these": scores, thresholds, ROC
paths              answers as paths down the tree
conformal          ... that are right as often as asked for
"""
