"""The parts of one update: parameter groups, optimizers, schedules, gradients, averaged weights."""
