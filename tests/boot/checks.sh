#!/bin/sh
# What the units promise, under the systemd that boot.sh has booted. At the end it prints "passed".
units=/etc/systemd/system
address=198.51.100.7 # for documentation (RFC 5737)

value() { systemctl show triojam.service --property "$1" --value; }
ask() { /opt/triojam/bin/triojam ask "$@"; }

# Wait until the command succeeds.
until_ok() {
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "failed: $*"
    systemctl status triojam.service --no-pager
    cat /out/server.log
    exit 1
}
is() { [ "$(value "$1")" = "$2" ]; }
has_restarted() { [ "$(value NRestarts)" -gt "$1" ]; }
says() { value StatusText | grep -q "$1"; }
says_not() { ! says "$1"; }
answers() { ask "$@" && is ActiveState active; }
with_password() {
    /opt/triojam/bin/python -c '
from base64 import b64encode; from urllib.request import Request, urlopen
urlopen(Request("http://127.0.0.1:45001/healthz", headers={"Authorization": "Basic " + b64encode(b"me:secret").decode()}))'
}
log_to_file() { printf '[Service]\nStandardError=append:/out/server.log\n'; }
drop_in() {
    mkdir -p $units/triojam.service.d
    cat >"$units/triojam.service.d/$1.conf"
    systemctl daemon-reload
}

ip link set lo up
log_to_file | drop_in log

echo "an address that comes after the start"
mv $units/triojam.socket /root/
systemctl daemon-reload
echo "TRIOJAM_HOST=$address" >/etc/triojam/environment
systemctl start --no-block triojam.service
until_ok has_restarted 0
until_ok is ExecMainStatus 1
ip address add $address/32 dev lo
until_ok answers $address

echo "a wrong setting is for good"
echo "TRIOJAM_GRACE=x" >/etc/triojam/environment
systemctl restart triojam.service 2>/dev/null
until_ok is ActiveState failed
until_ok is ExecMainStatus 2
sleep 5 # longer than RestartSec
until_ok is NRestarts 0

echo "keys and passwords by LoadCredential, which only root can read"
mv /root/triojam.socket $units/
systemctl daemon-reload
(
    cd /etc/triojam && umask 077
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -keyout server.key -out server.pem 2>/dev/null
    cp server.pem client-ca.pem
    /opt/triojam/bin/python -c 'import bcrypt; print("me:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode())' >passwords
)
{
    echo '[Service]'
    sed -n 's/^#\(LoadCredential\|Environment\)=/\1=/p' $units/triojam.service
} | drop_in credentials
printf 'TRIOJAM_TLS_PORT=45002\nTRIOJAM_CONFIG=/etc/triojam/triojam.toml\n' >/etc/triojam/environment
echo "idle_timeout = 30" >/etc/triojam/triojam.toml
systemctl start triojam.socket triojam.service
until_ok answers 127.0.0.1
until_ok with_password
# The server wants a client's certificate, and ask has none.
if ask --tls --ca /etc/triojam/server.pem localhost:45002 >/dev/null 2>&1; then exit 1; fi
printf '[Service]\nEnvironment=TRIOJAM_TLS_CLIENT_CA=\n' | drop_in no-client-ca
systemctl restart triojam.service
until_ok answers --tls --ca /etc/triojam/server.pem localhost:45002

echo "a reload, its failure in the status, and the next one"
systemctl reload triojam.service
until_ok says_not "not reloaded"
echo "port = 'x'" >/etc/triojam/triojam.toml
systemctl reload triojam.service
until_ok says "not reloaded: .*port"
echo "idle_timeout = 31" >/etc/triojam/triojam.toml
systemctl reload triojam.service
until_ok says_not "not reloaded"

echo "a restart that every client waits for"
for each in 1 2 3 4 5 6 7 8; do
    (sleep 0.$each; ask --timeout 30 127.0.0.1 >/dev/null 2>&1 && : >/out/answered.$each) &
done
systemctl restart triojam.service
wait
[ "$(ls /out/answered.* | wc -l)" = 8 ] || exit 1

echo "the watchdog restarts a server that hangs"
printf '[Service]\nWatchdogSec=3\n' | drop_in watchdog
systemctl restart triojam.service
kill -STOP "$(value MainPID)"
until_ok has_restarted 0
until_ok answers 127.0.0.1

echo "a signal that triojam does not use"
before=$(value NRestarts)
systemctl kill --signal USR1 triojam.service
until_ok has_restarted "$before"
until_ok answers 127.0.0.1

systemctl stop triojam.socket triojam.service
until_ok is ActiveState inactive
systemd-analyze security triojam.service --no-pager | tail -n 1
echo passed
