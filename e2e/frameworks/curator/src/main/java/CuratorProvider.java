import java.util.Map;
import java.util.Scanner;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.retry.RetryOneTime;
import org.apache.curator.x.discovery.ServiceDiscovery;
import org.apache.curator.x.discovery.ServiceDiscoveryBuilder;
import org.apache.curator.x.discovery.ServiceInstance;
import org.apache.curator.x.discovery.details.JsonInstanceSerializer;

/**
 * Registers through Curator's service discovery, as told line by line; each line is answered by one.
 *
 * <pre>put NAME ID HOST PORT SSLPORT ENABLED [KEY=VALUE]…   registers, or updates what is registered
 * drop NAME ID                                       unregisters</pre>
 *
 * A "-" stands for no TLS port. At the end of its input it leaves in order.
 */
public class CuratorProvider {
    private final ServiceDiscovery<Object> discovery;
    private final Map<String, ServiceInstance<Object>> registered = new TreeMap<>();

    private CuratorProvider(CuratorFramework client) throws Exception {
        discovery = ServiceDiscoveryBuilder.builder(Object.class)
            .client(client)
            .basePath("/services")
            .serializer(new JsonInstanceSerializer<>(Object.class, false))
            .build();
        discovery.start();
    }

    public static void main(String[] args) throws Exception {
        CuratorFramework client = CuratorFrameworkFactory.newClient(args[0], 10_000, 10_000, new RetryOneTime(100));
        client.start();
        client.blockUntilConnected(20, TimeUnit.SECONDS);
        CuratorProvider provider = new CuratorProvider(client);
        System.out.println("ready");
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            provider.obey(lines.nextLine().split(" "));
            System.out.println("done");
        }
        provider.discovery.close();
        client.close();
    }

    private void obey(String[] words) throws Exception {
        String key = words[1] + "/" + words[2];
        if (words[0].equals("drop")) {
            discovery.unregisterService(registered.remove(key));
            return;
        }
        ServiceInstance<Object> instance = instance(words);
        if (registered.put(key, instance) == null) {
            discovery.registerService(instance);
        } else {
            discovery.updateService(instance);
        }
    }

    private static ServiceInstance<Object> instance(String[] words) throws Exception {
        Map<String, String> payload = new TreeMap<>();
        for (int i = 7; i < words.length; i++) {
            String[] entry = words[i].split("=", 2);
            payload.put(entry[0], entry[1]);
        }
        var builder = ServiceInstance.<Object>builder()
            .name(words[1])
            .id(words[2])
            .address(words[3])
            .port(Integer.parseInt(words[4]))
            .enabled(Boolean.parseBoolean(words[6]))
            .payload(payload);
        if (!words[5].equals("-")) {
            builder.sslPort(Integer.parseInt(words[5]));
        }
        return builder.build();
    }
}
