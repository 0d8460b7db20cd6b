"""From a configuration to a run directory: TRL's SFTTrainer with LoRA or DoRA."""
