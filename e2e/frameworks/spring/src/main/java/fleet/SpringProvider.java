package fleet;

import java.util.Scanner;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.cloud.zookeeper.serviceregistry.ZookeeperRegistration;
import org.springframework.cloud.zookeeper.serviceregistry.ZookeeperServiceRegistry;
import org.springframework.context.ConfigurableApplicationContext;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RestController;

/**
 * A Spring Boot application that registers itself in ZooKeeper and serves HTTP. Its arguments are Spring's
 * own (--spring.cloud.zookeeper.connect-string=…). Each line that it is told is a status (UP, OUT_OF_SERVICE),
 * which it takes on; each is answered by one. At the end of its input it leaves in order.
 */
@SpringBootApplication(proxyBeanMethods = false)
@RestController
public class SpringProvider {
    @Value("${spring.application.name}")
    private String name;

    public static void main(String[] args) {
        try (ConfigurableApplicationContext context = new SpringApplicationBuilder(SpringProvider.class).run(args)) {
            System.out.println("ready");
            var registry = context.getBean(ZookeeperServiceRegistry.class);
            var registration = context.getBean(ZookeeperRegistration.class);
            Scanner lines = new Scanner(System.in);
            while (lines.hasNextLine()) {
                registry.setStatus(registration, lines.nextLine());
                System.out.println("done");
            }
        }
    }

    @GetMapping("/")
    String hello() {
        return "this is " + name;
    }
}
