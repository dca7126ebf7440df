# The host agent under a topic of its own, beating often: twistd -ny tap/agent.tac
#
# What is written here wins over NOVASVC_* variables and files, as options of twistd would.
import sys

from twisted.application.service import Application
from twisted.logger import ILogObserver

from novasvc.run.plugin import makeService
from novasvc.telemetry.logs import make_observer

application = Application("novasvc-agent")
application.setComponent(ILogObserver, make_observer(sys.stdout))
makeService({"binary": "novasvc-agent", "topic": "agent", "report-interval": 5}).setServiceParent(application)
