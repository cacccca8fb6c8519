# shellcheck shell=bash
# How tests/test_walk.py makes a page's commands small. The commands themselves are run as they stand there.
#
# WALK is a folder for everything; `small` is set for what a page wants on a cluster.

tiny=(--model_size tiny --max_steps 4 --max_seq_length 128 --tokens_per_device 512 --global_batch_tokens 1024)

bash() {
  case "$1" in
    quickstart.sh) command bash "$@" --steps 4 --output_dir "$WALK/quickstart" ;;
    cluster_setup/local_slurm.sh) command bash "$@" --dir "$WALK/slurm" ;;
    *) command bash "$@" ;;
  esac
}

python() {
  case "$1" in
    0.download_data.py)
      if [ -n "${small:-}" ]; then set -- "$@" --source synthetic --max_records 300 --num_partitions 2; fi ;;
  esac
  command python "$@"
}
python3() { python "$@"; }
.venv/bin/python() { python "$@"; }

sbatch() {
  local script=() flags=()
  if [ -n "${small:-}" ]; then
    case "$*" in
      *4.finetune*) flags=(--max_steps 2 --max_seq_length 64 --split random) ;;
      *) flags=("${tiny[@]}") ;;
    esac
  fi
  script=("${@/--nodes=4/--nodes=2}")
  command sbatch "${script[@]}" "${flags[@]}" | tee -a "$WALK/submitted"
}

srun() { command srun "${@/--partition=cpu/--partition=dev}"; }
sudo() { "$@"; }
scontrol() { command scontrol "${@/node=ip-10-1-2-3/node=node3}"; }

# A reader follows the log until the run is on its way.
tail() {
  if [ "$1" = -F ]; then
    until grep -q '^step 20/' "$2" 2>/dev/null || ! squeue --noheader --jobs="$JOB" | grep -q .; do sleep 0.2; done
    cat "$2"
  else
    command tail "$@"
  fi
}

# A reader waits until the queue is empty. All jobs of the walk have then done what they should.
wait_for_jobs() {
  while [ -n "$(squeue --noheader)" ]; do sleep 0.5; done
  local job
  while read -r job; do
    command scontrol show job "$job" | grep -q JobState=COMPLETED || { cat ./slurm-*-"$job".out; return 1; }
  done < <(sed -n 's/^Submitted batch job //p' "$WALK/submitted" 2>/dev/null)
  rm -f "$WALK/submitted"
}

# A command as somebody on a cluster runs it: small, in a folder of its own, on the data that are there.
on_a_cluster() {
  (
    export DATASET_DIR="$FSX_DIR/processed/arrow"
    awk -F, 'NR > 1 && NR < 200 {print ">" $1 " " $3 "\n" $2}' "$FSX_DIR/csv/localization.csv" >labelled.fasta || true
    small=1 FSX_DIR="$WALK/cluster"
    eval "$1"
  )
}
