"""The loop: engine set-up, one step, schedules, checkpoints, preemption, records. Decides when, not what or where."""
