package fleet;

import java.util.Map;
import java.util.Scanner;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/**
 * A Dubbo 3 provider with two protocols, registered at both levels: as an application below /services, and
 * each interface below /dubbo. Arguments: CONNECT, HOST, the port of dubbo, the port of tri. At the end of its input
 * it leaves in order.
 */
public class DubboProvider {
    public static void main(String[] args) {
        ApplicationConfig application = new ApplicationConfig("greetings");
        application.setQosEnable(false);
        application.setRegisterMode("all");
        RegistryConfig registry = new RegistryConfig("zookeeper://" + args[0]);
        // As a parameter, which Dubbo's configuration centre, whose session it shares, takes over.
        registry.setParameters(Map.of("session", "4000"));
        DubboBootstrap bootstrap = DubboBootstrap.getInstance()
            .application(application)
            .registry(registry)
            .protocol(protocol("dubbo", args[1], args[2]))
            .protocol(protocol("tri", args[1], args[3]))
            .service(greeter())
            .service(clock());
        bootstrap.start();
        System.out.println("ready");
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            lines.nextLine();
        }
        bootstrap.stop();
        System.exit(0);
    }

    private static ProtocolConfig protocol(String name, String host, String port) {
        ProtocolConfig protocol = new ProtocolConfig(name, Integer.parseInt(port));
        protocol.setHost(host);
        return protocol;
    }

    /** In a group and a version of its own, with a tag, a weight and a warm-up. */
    private static ServiceConfig<Greeter> greeter() {
        ServiceConfig<Greeter> service = new ServiceConfig<>();
        service.setInterface(Greeter.class);
        service.setRef(name -> "hello, " + name);
        service.setGroup("blue");
        service.setVersion("1.0.0");
        service.setTag("canary");
        service.setWeight(300);
        service.setWarmup(1_000);
        return service;
    }

    private static ServiceConfig<Clock> clock() {
        ServiceConfig<Clock> service = new ServiceConfig<>();
        service.setInterface(Clock.class);
        service.setRef(System::currentTimeMillis);
        return service;
    }
}
