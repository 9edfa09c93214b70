#!/bin/sh
# Draws the secrets of an overlay and prints them as manifests:
#   sh secrets.sh one-node | kubectl apply -n ordersys -f -
# Once: every run draws others. Keep what it prints where you keep secrets, and nowhere else.
set -eu

case "${1-}" in
one-node)
  broker=amqp://@rabbitmq:5672/%2F
  tls=disable
  port=5672
  database=@database-rw:5432/ordersys
  ;;
production)
  broker=amqps://@rabbitmq.ordersys.svc:5671/%2F # KEDA asks from a namespace of its own
  tls=enable
  port=5671
  database="@database-rw:5432/ordersys?sslmode=verify-full&sslrootcert=/etc/ordersys/database-ca/ca.crt"
  ;;
*)
  echo "usage: sh secrets.sh one-node|production" >&2
  exit 2
  ;;
esac

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
database_password="$(random 24)"
broker_password="$(random 24)"
# As `ordersys keys create` draws them: 32 random bytes in base64url without padding are 43 characters.
key="osk_$(random 6)_$(head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n')"

cat <<END
apiVersion: v1
kind: Secret
metadata:
  name: ordersys-database
type: kubernetes.io/basic-auth
stringData:
  username: ordersys
  password: $database_password
  url: postgresql+psycopg://ordersys:$database_password$database
---
apiVersion: v1
kind: Secret
metadata:
  name: ordersys-broker
stringData:
  username: ordersys
  password: $broker_password
  url: ${broker%%@*}ordersys:$broker_password@${broker#*@}
  host: rabbitmq
  port: "$port"
  provider: rabbitmq
  type: rabbitmq
  tls: $tls # for KEDA
  default_user.conf: |
    default_user = ordersys
    default_pass = $broker_password
---
apiVersion: v1
kind: Secret
metadata:
  name: ordersys-api-key
stringData:
  key: $key
END
