"""What pretraining and fine-tuning share: a Trainer that resumes, its flags, stopping, speed."""
