# A conductor, and an agent that may not reach the database: twistd -ny tap/conductor.tac
#
# The agent registers and beats through the conductor. Both run in this one process, to be tried out: on
# two hosts, where this belongs, each has a process of its own, and NOVASVC_TRANSPORT_URL names their broker.
import sys
from pathlib import Path

from twisted.application.service import Application
from twisted.logger import ILogObserver

from novasvc.run.plugin import makeService
from novasvc.telemetry.logs import make_observer

application = Application("novasvc-conductor")
application.setComponent(ILogObserver, make_observer(sys.stdout))
makeService({"config": [Path(__file__).with_name("conductor.toml")]}).setServiceParent(application)
