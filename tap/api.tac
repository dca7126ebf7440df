# The API of a fleet, in a process of its own: twistd -ny tap/api.tac, then open http://127.0.0.1:8774/
#
# It finds the fleet by NOVASVC_DATABASE_URL and NOVASVC_TRANSPORT_URL, as the nodes do.
import sys
from pathlib import Path

from twisted.application.service import Application
from twisted.logger import ILogObserver

from novasvc.run.plugin import makeService
from novasvc.telemetry.logs import make_observer

application = Application("novasvc-api")
application.setComponent(ILogObserver, make_observer(sys.stdout))
makeService({"config": [Path(__file__).with_name("api.toml")]}).setServiceParent(application)
