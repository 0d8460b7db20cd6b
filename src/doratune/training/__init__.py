"""From a configuration to a run directory: training LoRA, DoRA or all weights with TRL's SFTTrainer."""
