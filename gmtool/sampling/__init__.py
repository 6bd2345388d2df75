"""Drawing samples from a trained network: plan, model, guidance, solver; used by train, sample, eval and bench."""
