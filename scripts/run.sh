# Sourced by the other scripts: DRY_RUN=1 prints the commands that they would run.
run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
