#!/bin/sh
# Draws the secrets that compose.yaml mounts into deploy/docker/secrets, once: files that are there stay as they are.
set -eu
cd "$(dirname "$0")"

mkdir -p secrets
chmod 700 secrets # the containers' users read the files, and nobody else on this machine gets to them
umask 022

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

# keep FILE LINE...: what the file holds, unless there is one.
keep() {
  file="secrets/$1"
  shift
  [ -s "$file" ] || printf '%s\n' "$@" >"$file"
}

keep postgres_password "$(random 24)"
keep rabbitmq_password "$(random 24)"
keep grafana_password "$(random 12)"
# As `ordersys keys create` draws them: 32 random bytes in base64url without padding are 43 characters.
keep api_key "osk_$(random 6)_$(head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n')"

keep database_url "postgresql+psycopg://ordersys:$(cat secrets/postgres_password)@postgres:5432/ordersys"
keep broker_url "amqp://ordersys:$(cat secrets/rabbitmq_password)@rabbitmq:5672/%2F"
keep rabbitmq.conf "default_user = ordersys" "default_pass = $(cat secrets/rabbitmq_password)"
