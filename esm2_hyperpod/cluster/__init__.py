"""From `cluster.yaml` to a SageMaker HyperPod Slurm cluster; needs boto3 and PyYAML, and nothing else."""
