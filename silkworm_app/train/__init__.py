"From batches to a run: settings, learner, cross-validation and the command silkworm-train"
